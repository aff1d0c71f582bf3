"""What `l2s doctor --probe` runs on a node: `… -m l2s_hpc.task.probe FOLDER NONCE DEVICE SCRATCH`.

Answers with two files in the folder, which the login node watches: `hello.json` at once, so that it
can be timed how fast a new file shows, and `node.json` with all that was found. In between it waits
a while for the login node's `reply.json`: the four times of that exchange tell clocks that differ
from files that show late. A fault of the node is written down, not raised.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from l2s_hpc.errors import DamageError
from l2s_hpc.store.files import read_json, write_json
from l2s_hpc.task.look import look
from l2s_hpc.task.node import job

_REPLY_SECONDS = 90.0
_LOOK_SECONDS = 0.2


def main(arguments: list[str]) -> int:
    """Look at this node and leave what was found in the folder."""
    folder, (nonce, device, scratch) = Path(arguments[0]), arguments[1:]
    said = time.time()
    write_json(folder / "hello.json", {"nonce": nonce, "time": said})
    shared = {"early": _early(folder, nonce), **_shared(folder)}
    reply = _reply(folder, nonce)
    found = {
        "nonce": nonce,
        "job": job().id,
        "said": said,
        "reply": reply,
        "shared": shared,
        **look(device, scratch),
    }
    write_json(folder / "node.json", found)
    return 0


def _early(folder: Path, nonce: str) -> str:
    """Say what of the file shows that the login node wrote just before it submitted."""
    try:
        found = read_json(folder / "login.json")
    except (OSError, DamageError) as error:
        return f"not readable: {error}"
    return "whole" if found == {"nonce": nonce} else f"other content: {found}"


def _shared(folder: Path) -> dict[str, Any]:
    """Try on the shared disk what the store does: rename, and a hard link."""
    place = folder / "from-node"
    try:
        place.mkdir()
        first, second, third = place / "first", place / "second", place / "third"
        first.write_text("here", encoding="utf-8")
        first.rename(second)
        renamed = second.read_text(encoding="utf-8") == "here" and not first.exists()
    except OSError as error:
        return {"rename": False, "hard_link": False, "fault": str(error)}
    try:
        third.hardlink_to(second)
        linked, fault = second.stat().st_nlink == 2, ""
    except OSError as error:
        linked, fault = False, str(error)
    return {"rename": renamed, "hard_link": linked, "fault": fault}


def _reply(folder: Path, nonce: str) -> float | None:
    """Return when the login node's answer showed here, by this node's clock; None: it did not."""
    deadline = time.monotonic() + _REPLY_SECONDS
    while time.monotonic() < deadline:
        # Listing a folder makes NFS look anew, where asking for a name that was missing does not.
        if any(path.name == "reply.json" for path in folder.iterdir()):
            seen = time.time()
            try:
                if read_json(folder / "reply.json").get("nonce") == nonce:
                    return seen
            except (OSError, DamageError):
                pass
        time.sleep(_LOOK_SECONDS)
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
