"""What runs on a node: recipe -> merged weights -> answers -> score table -> receipt."""
