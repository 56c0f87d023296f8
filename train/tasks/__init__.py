"""One kind of learning, one file: options, loss, update, evaluators."""
