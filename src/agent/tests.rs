//! What the domain claims, with stand-ins for its models.
