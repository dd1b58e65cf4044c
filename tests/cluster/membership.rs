//! Who is a member, and how clients learn it.
