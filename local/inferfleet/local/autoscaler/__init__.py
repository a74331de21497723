"""Scale local worker processes as KEDA and the HPA would scale pods, from the same ScaledObject.

    scaled_object   reads the manifest, with KEDA's defaults
    triggers        the supported triggers
    keda            KEDA's part: from zero and back to zero
    hpa             the HPA's part: from one to many and back
    behavior        how fast the HPA may scale: windows and policies
    fallback        what the HPA is told while a trigger fails
    scaler          all parts together, on the caller's clock
    measure         queries RabbitMQ and Prometheus as KEDA would
    replicas        worker processes in place of pods
    live            the loop
    trace           arrivals for a simulation
    simulate        the same decisions in simulated time
    plot            a plot of a simulation

All decisions are pure: they get the time and the readings, and read neither clocks nor queues themselves.
"""
