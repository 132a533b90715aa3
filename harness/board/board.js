(function(){
 var table=document.querySelector('table[data-sort]');if(!table)return;
 var body=table.tBodies[0],heads=table.tHead.rows[0].cells,rows=[].slice.call(body.rows),
 box=document.getElementById('filter'),count=document.getElementById('count'),first=rows.slice();
 function state(){var s={};location.hash.slice(1).split('&').forEach(function(p){var i=p.indexOf('=');
  if(i>0)try{s[p.slice(0,i)]=decodeURIComponent(p.slice(i+1));}catch(e){s[p.slice(0,i)]=p.slice(i+1);}});return s;}
 function keep(s){var parts=[];for(var k in s)if(s[k])parts.push(k+'='+encodeURIComponent(s[k]));
  history.replaceState(null,'',parts.length?'#'+parts.join('&'):location.pathname+location.search);}
 function show(){
  var s=state(),at=-1,down=s.order==='down';
  for(var i=0;i<heads.length;i++){if(heads[i].dataset.key===s.sort)at=i;heads[i].removeAttribute('aria-sort');}
  var sorted=first.slice();
  if(at>=0){heads[at].setAttribute('aria-sort',down?'descending':'ascending');
   sorted.sort(function(a,b){var x=a.cells[at].dataset.value,y=b.cells[at].dataset.value;
    if(x===''||y==='')return x===y?0:x===''?1:-1;
    var n=Number(x),m=Number(y),c=isNaN(n)||isNaN(m)?x.localeCompare(y):n-m;return down?-c:c;});}
  var shown=0,word=(s.filter||'').toLowerCase();
  sorted.forEach(function(r){body.appendChild(r);r.hidden=word!==''&&r.textContent.toLowerCase().indexOf(word)<0;
   if(!r.hidden)shown++;r.classList.toggle('group',at<0&&!word&&r.dataset.begins==='1');});
  if(box.value!==(s.filter||''))box.value=s.filter||'';
  count.textContent=shown+' of '+rows.length+' entries';
 }
 for(var i=0;i<heads.length;i++)(function(head){var button=head.querySelector('button');if(!button)return;
  button.addEventListener('click',function(){var s=state();
   if(s.sort!==head.dataset.key){s.sort=head.dataset.key;s.order='';}else if(!s.order)s.order='down';
   else{s.sort='';s.order='';}keep(s);show();});})(heads[i]);
 box.addEventListener('input',function(){var s=state();s.filter=box.value;keep(s);show();});
 window.addEventListener('hashchange',show);show();
})();
