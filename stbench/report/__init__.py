"""Records -> one HTML page that stands alone: what was measured, and what each number rests on."""
