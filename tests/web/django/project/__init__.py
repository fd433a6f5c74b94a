"""A Django project with an admin, a shop and logins, for tests in this process and in servers."""
