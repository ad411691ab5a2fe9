"""Everything an image says about how it boots, and the boot image."""
