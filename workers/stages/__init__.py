"""One module per stage: a function from the attempt to the message that says what the stage made."""
