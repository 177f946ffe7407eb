"""Who is there: users, projects, memberships, sessions and tokens."""
