// An informer of client-go, as every controller has one: SERVER, the file of its authority, a token and a namespace are its
// arguments. It prints "synced COUNT" once it has all ConfigMaps of the namespace, then "added NAME", "changed NAME" and
// "deleted NAME" as they come, and ends with its standard input.
package main

import (
	"fmt"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

func main() {
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host:            os.Args[1],
		TLSClientConfig: rest.TLSClientConfig{CAFile: os.Args[2]},
		BearerToken:     os.Args[3],
	})
	if err != nil {
		panic(err)
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(os.Args[4]))
	informer := factory.Core().V1().ConfigMaps().Informer()
	name := func(object any) string {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		return object.(*corev1.ConfigMap).Name
	}
	informer.AddEventHandler(cache.ResourceEventHandlerDetailedFuncs{
		AddFunc: func(object any, first bool) {
			if !first {
				fmt.Println("added", name(object))
			}
		},
		UpdateFunc: func(_, object any) { fmt.Println("changed", name(object)) },
		DeleteFunc: func(object any) { fmt.Println("deleted", name(object)) },
	})
	factory.Start(stop)
	for !informer.HasSynced() {
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
	fmt.Println("synced", len(informer.GetStore().List()))
	<-stop
}
