package settings

import (
	"os"

	"k8s.io/client-go/tools/clientcmd"
	api "k8s.io/client-go/tools/clientcmd/api"
)

// writeKubeconfig writes the kubeconfig of the certificate user to path, with keys inside,
// so that it may be copied. An existing file is kept: a user may have chosen a namespace.
func (c Cluster) writeKubeconfig(user, path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	read := func(name string) (data []byte, err error) { return os.ReadFile(c.key(name)) }
	ca, err := read("ca.crt")
	if err != nil {
		return err
	}
	cert, err := read(user + ".crt")
	if err != nil {
		return err
	}
	key, err := read(user + ".key")
	if err != nil {
		return err
	}
	config := api.NewConfig()
	config.Clusters[c.Name()] = &api.Cluster{Server: c.URL(), CertificateAuthorityData: ca}
	config.AuthInfos[user] = &api.AuthInfo{ClientCertificateData: cert, ClientKeyData: key}
	config.Contexts[c.Name()] = &api.Context{Cluster: c.Name(), AuthInfo: user}
	config.CurrentContext = c.Name()
	return clientcmd.WriteToFile(*config, path)
}
