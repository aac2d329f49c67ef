"""Records as they are kept, and as rows of a tidy frame."""
