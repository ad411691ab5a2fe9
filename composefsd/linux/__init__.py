"""The kernel's interfaces: fs-verity, locks, a directory as a tree."""
