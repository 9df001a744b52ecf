// Modules that only bring definitions. They are no part of the digest that names the folder of what is built.
module doorward.dev/tests/cluster/definitions

go 1.26.0

require sigs.k8s.io/gateway-api v1.6.3
