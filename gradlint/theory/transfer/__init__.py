"""Transfer rules: the effect of each family of operators on a signal, and on the cotangent that is pulled back."""
