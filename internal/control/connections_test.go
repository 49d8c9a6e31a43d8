package control

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/heddle-mesh/heddle/internal/xds"
	"github.com/heddle-mesh/heddle/internal/xds/xdstest"
)

const clientsOf = "HEDDLE_TEST_CLIENTS_OF" // the address of a server: be its clients, in a process of their own

// TestConnectionCosts: what a connected client takes of the plane's heap, transport and TLS included, once it has accepted all.
func TestConnectionCosts(t *testing.T) {
	if addr := os.Getenv(clientsOf); addr != "" {
		beClients(t, addr)
		return
	}
	const most = 80_000
	var costs []int
	for _, services := range []int{1000, 10_000} {
		heap, stacks := connectionCost(t, services, 20)
		t.Logf("%d services: %d bytes of heap and %d of stacks a client", services, heap, stacks)
		costs = append(costs, heap)
	}
	// The first request of names leaves crypto/tls with a buffer of one record, or of two if it was of several: 18 to 41 kB.
	if few, many := costs[0], costs[1]; max(few, many) > most || many-few > 15_000 {
		t.Errorf("a client takes %d bytes of heap with 1,000 services and %d with 10,000; want at most %d, and the same but for the buffer of TLS", few, many, most)
	}
}

func connectionCost(t *testing.T, services, clients int) (heap, stacks int) {
	server := xds.NewServer(xds.Options{Types: pushOrder, Admit: func(context.Context) (xds.Admission, error) {
		return xds.Admission{Enter: func(xds.Hello) (*xds.Session, error) {
			return &xds.Session{Groups: func() ([]xds.Group, xds.Group) { return []xds.Group{"all"}, "" }}, nil
		}}, nil
	}, MaxStreams: clients + 1})
	changes := []xds.Change{{Group: "all", Type: clusterType}, {Group: "all", Type: assignmentType}}
	for i := range services {
		name := serviceName(i)
		changes[0].Set = append(changes[0].Set, must(xds.Seal(clusterType, name, "", &clusterv3.Cluster{Name: name, AltStatName: strings.Repeat("x", 300)})))
		changes[1].Set = append(changes[1].Set, must(xds.Seal(assignmentType, name, "", &endpointv3.ClusterLoadAssignment{ClusterName: name})))
	}
	server.Publish(1, changes)
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	g := grpc.NewServer(Options{}.grpcOptions(&tls.Config{Certificates: []tls.Certificate{selfSigned()}, NextProtos: []string{"h2"}})...)
	server.Register(g)
	pushOrder := make(chan error)
	go func() { pushOrder <- g.Serve(l) }()
	defer func() { g.Stop(); <-pushOrder }()

	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConnectionCosts$", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", clientsOf, l.Addr(), services, clients))
	cmd.Stderr = os.Stderr
	stdin, stdout := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	connected := func() runtime.MemStats {
		for lines.Scan() && lines.Text() != "connected" {
		}
		return memory()
	}
	before := connected() // the first, with which come the names that all ask for
	fmt.Fprintln(stdin)
	after := connected()
	for _, c := range server.Clients() {
		for _, s := range c.Types {
			if s.Sync != xds.Synced {
				t.Errorf("%s of a client is %v", s.URL, s.Sync)
			}
		}
	}
	if n := len(server.Clients()); n != clients+1 {
		t.Errorf("%d clients, want %d", n, clients+1)
	}
	_ = stdin.Close()
	_ = cmd.Wait() // its connections end with it
	return (int(after.HeapAlloc) - int(before.HeapAlloc)) / clients, (int(after.StackInuse) - int(before.StackInuse)) / clients
}

func memory() (m runtime.MemStats) {
	for range 3 { // pools let go of what they have at the second
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m
}

func serviceName(i int) string {
	return fmt.Sprintf("outbound|80||service-%d.shop.svc.cluster.local", i)
}

// beClients connects one and then, when told to, the others, says so, and stays until its input ends.
func beClients(t *testing.T, server string) {
	var addr string
	var services, clients int
	if _, err := fmt.Sscan(server, &addr, &services, &clients); err != nil {
		t.Fatal(err)
	}
	var names []string
	for i := range services {
		names = append(names, serviceName(i))
	}
	input := bufio.NewReader(os.Stdin)
	for i := range clients + 1 {
		conn := must(grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true})),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30))))
		defer conn.Close()
		c := must(xdstest.Connect(t.Context(), conn, xdstest.Delta, &corev3.Node{Id: fmt.Sprint(i)}))
		for _, sub := range []struct {
			url   string
			names []string
		}{{clusterType, nil}, {assignmentType, names}, {"a question, answered after what was before it is taken", []string{"x"}}} {
			if err := c.Subscribe(sub.url, sub.names...); err != nil {
				t.Fatal(err)
			}
			r, err := c.Next()
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Ack(r); err != nil {
				t.Fatal(err)
			}
		}
		if i == 0 || i == clients {
			fmt.Println("\nconnected")
			_, _ = input.ReadString('\n')
		}
	}
}

func selfSigned() tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	return tls.Certificate{Certificate: [][]byte{must(x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key))}, PrivateKey: key}
}
