"""What tests share: a real server with a home of its own, and the search for what a test left behind."""
