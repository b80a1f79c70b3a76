"""Why a picture looks as it does, and what can be asked of a painter: for the endpoint, its page and the sheets."""
