"""The local page of `longtake browse` and `longtake audit`."""
