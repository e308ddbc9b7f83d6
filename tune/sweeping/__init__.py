"""What a sweep is made of; `tune/sweep.py` is the command."""
