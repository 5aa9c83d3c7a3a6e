"""Transfer rules: what each family of operators does to a signal, and to the cotangent that comes back."""
