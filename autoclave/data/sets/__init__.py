"""An operator's sets of prompts, made from public ones: alignment, realignment, evaluation. No torch."""
