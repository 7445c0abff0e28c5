"""The conformance kit: proves that a provider neither loses a paid job nor makes one twice. See docs/conformance.md.

    server     a fake vendor over HTTP: routes, a request log, scripted faults, state that outlives its clients
    faults     what can go wrong with one request
    suite      ``ProviderConformance``, the tests that every provider must pass
    process    a client in a process of its own, that can be killed at any request
    *_vendor   one stateful fake per vendor, in its wire format, so that the vendor's own SDK is the client
"""
