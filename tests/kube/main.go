// Command kube is the real Kubernetes control plane, and the kubelet, as one
// program, built from the published Go modules: the judge of hublet's suites.
//
//	kube etcd DIR CLIENT_URL    a single-member etcd that does not fsync
//	kube apiserver FLAGS        kube-apiserver with its own flags
//	kube kcm FLAGS              kube-controller-manager with its own flags
//	kube kubelet FLAGS          kubelet with its own flags, for the suites with a real node
//
// The Rust side (tests/src/kube) makes the certificates, chooses the ports and
// the flags, and ends the processes. With KUBE_EXIT_WITH_STDIN=1 in the
// environment a component also ends when its standard input does: a test that
// is killed leaves nothing behind.
package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"k8s.io/component-base/cli"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// The components register their metrics and log formats by import.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

const usage = "usage: kube etcd DIR CLIENT_URL | kube apiserver FLAGS | kube kcm FLAGS | kube kubelet FLAGS"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	verb, args := os.Args[1], os.Args[2:]
	// The commands read os.Args themselves. Its first word names the component
	// in User-Agent, and so in managedFields: "apiserver", "kcm".
	os.Args = os.Args[1:]
	if os.Getenv("KUBE_EXIT_WITH_STDIN") == "1" {
		go exitWithStdin()
	}
	switch verb {
	case "etcd":
		if len(args) != 2 {
			fmt.Fprintln(os.Stderr, usage)
			os.Exit(2)
		}
		if err := etcd(args[0], args[1]); err != nil {
			fmt.Fprintln(os.Stderr, "etcd:", err)
			os.Exit(1)
		}
	case "apiserver":
		os.Exit(cli.Run(apiserver.NewAPIServerCommand()))
	case "kcm":
		os.Exit(cli.Run(kcm.NewControllerManagerCommand()))
	case "kubelet":
		os.Exit(cli.Run(kubelet.NewKubeletCommand(context.Background())))
	case "-h", "--help", "help":
		fmt.Println(usage)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
}

// exitWithStdin ends the process when whoever started it has gone.
func exitWithStdin() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(1)
}

// etcd serves one member on clientURL with its data in dir until a signal.
func etcd(dir, clientURL string) error {
	client, err := url.Parse(clientURL)
	if err != nil {
		return fmt.Errorf("client URL %q: %w", clientURL, err)
	}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}

	config := embed.NewConfig()
	config.Name = "cloud"
	config.Dir = dir
	config.LogLevel = "warn"
	config.UnsafeNoFsync = true // a test's data need not outlive its machine
	config.ListenClientUrls = []url.URL{*client}
	config.AdvertiseClientUrls = []url.URL{*client}
	config.ListenPeerUrls = []url.URL{peer}
	config.AdvertisePeerUrls = []url.URL{peer}
	config.InitialCluster = config.InitialClusterFromName(config.Name)

	server, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer server.Close()

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	select {
	case <-server.Server.ReadyNotify():
	case <-stop:
		return nil
	case <-time.After(60 * time.Second):
		return fmt.Errorf("not ready after 60 s")
	}
	select {
	case err := <-server.Err():
		return err
	case <-stop:
		return nil
	}
}
