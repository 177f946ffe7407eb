"""The portal as an OAuth2 authorization server: applications, consents, grants, signing keys and access tokens."""
