"""The template gym: the model plays an environment of gymnasium, turn by turn."""
