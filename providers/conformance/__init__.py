"""The conformance kit: proves that a provider neither loses a paid job nor makes one twice. See docs/conformance.md.

    server     a fake vendor over HTTP: routes, a request log, scripted faults, state that outlives its clients
    wire, listener    requests and answers; the HTTP server in front of a vendor
    faults     what can go wrong with one request
    suite      ``ProviderConformance``, the tests that every provider must pass
    bench      what a provider's test supplies, and what each test works with
    lifecycle, exactly_once, refusals, deploying    the suite's tests by subject
    process    a client in a process of its own, that can be killed at any request
    forks      processes that begin with their modules loaded
    sdk        the exception classes of a vendor's SDK
    *_vendor   one stateful fake per vendor, in its wire format, so that the vendor's own SDK is the client
"""
