"""Object storage behind an S3 interface of somebody else's: Ceph RGW with its interface for users, or any other with one key."""
