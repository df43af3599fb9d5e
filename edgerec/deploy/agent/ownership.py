"""Make the user ``nobody`` the owner of a folder while code from a bundle runs, and return it to root afterwards."""

from __future__ import annotations

import os
import stat

# ID of the user and of the group "nobody", which may only read files that all users may read.
NOBODY = 65534


def give_to_nobody(folder: str) -> None:
    """Make the user ``nobody`` the owner of a folder and its content, but not of the targets of symbolic links."""
    # Change a folder after its content, so that a process of the user nobody cannot replace entries meanwhile.
    for _, folders, files, descriptor in os.fwalk(folder, topdown=False, onerror=_raise_error):
        for name in folders + files:
            os.chown(name, NOBODY, NOBODY, dir_fd=descriptor, follow_symlinks=False)
        os.chown(descriptor, NOBODY, NOBODY)


def return_to_root(folder: str) -> None:
    """Make root the owner of a folder and its content, and the only user who can change them."""
    for _, folders, _, descriptor in os.fwalk(folder, onerror=_raise_error):
        # Change a folder before its content, so that a process of the user nobody cannot replace entries meanwhile.
        # chmod also limits access control lists, because the group bits of the mode are their mask.
        os.chown(descriptor, 0, 0)
        os.chmod(descriptor, 0o755)
        folders.clear()
        for name in os.listdir(descriptor):
            os.chown(name, 0, 0, dir_fd=descriptor, follow_symlinks=False)
            mode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                folders.append(name)
            elif not stat.S_ISLNK(mode):
                os.chmod(name, mode & 0o755, dir_fd=descriptor)


def _raise_error(error: OSError) -> None:
    raise error
