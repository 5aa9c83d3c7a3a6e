"""The equations that `gradlint explain` prints."""
