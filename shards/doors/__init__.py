"""The one way in for each format of bytes that somebody else wrote, and the one way out for text found in them."""
