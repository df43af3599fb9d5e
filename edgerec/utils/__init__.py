"""General functions that do not depend on other packages of edgerec."""
