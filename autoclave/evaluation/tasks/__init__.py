"""Tasks beyond answer rules: pairwise comparison by a judge, held-out loss, lm-eval (docs/tasks.md)."""
