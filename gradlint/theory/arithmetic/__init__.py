"""The equations that `gradlint explain` prints for one operator."""
