"""`POST /predict`: the request's body and the response."""
