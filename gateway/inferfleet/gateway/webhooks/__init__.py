"""Webhooks: tell tenants' endpoints what has ended, as Standard Webhooks say.

webhooks    the door for routes: which jobs are watched, and events that are no job's
kinds       which event the end of a job becomes
delivery    watches, delivers and tries again; it runs in every gateway
delivery_spans  a delivery as a span of its job's trace
sending     one request to an endpoint, to no address that it must not reach
signing     the headers of a request
"""
