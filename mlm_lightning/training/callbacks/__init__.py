"""What happens around the steps, one file each."""
