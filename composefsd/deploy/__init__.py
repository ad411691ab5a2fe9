"""What belongs on the ESP, then putting it there."""
