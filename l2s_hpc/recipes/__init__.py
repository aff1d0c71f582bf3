"""From a genome to a recipe: methods, models, genes, groups of tensors, canonical form."""
