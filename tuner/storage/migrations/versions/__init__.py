"""The revisions of our tables, one a file; one that was released is never changed."""
