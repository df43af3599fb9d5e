"""General-purpose utilities that do not depend on edgerec's other packages."""
