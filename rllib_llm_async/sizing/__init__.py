"""What a job will take and how old its tokens will be, before it has cost anything."""
