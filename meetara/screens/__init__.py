"""What the commands show, one module per screen."""
