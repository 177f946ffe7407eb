"""The machinery underneath: ports that say what is asked, drivers that do it."""
