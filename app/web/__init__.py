"""What knows Flask beside the routes: who may ask, how a log becomes a response, how a failure does."""
