"""The shipped shells in a world: middleware, sessions, driver, repair, links, session servers; and browsers."""
