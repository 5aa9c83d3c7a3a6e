"""Small networks with tasks and recipes, trained in plain torch and labelled by what came of it."""
