"""The part beside the routes that knows Flask: requests in, responses out. One file for each job."""
