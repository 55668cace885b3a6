"""The commands of the library, one module each. They parse, call one function, and print."""
