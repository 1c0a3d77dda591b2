"""What other packages call the same things."""
