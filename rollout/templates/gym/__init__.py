"""An environment of gymnasium, turn by turn."""
