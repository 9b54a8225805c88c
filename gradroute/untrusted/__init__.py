"""Files made by others, checked before a library opens them."""
