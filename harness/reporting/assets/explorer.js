(function(){
'use strict';
var data=JSON.parse(document.getElementById('explorer-data').textContent),
 root=document.getElementById('explorer');
if(!root||!data.metrics.length)return;
var cells=data.cells,steps=data.steps,find=function(id){return document.getElementById(id);},
 metricBox=find('ex-metric'),panelBox=find('ex-panels'),logBox=find('ex-log'),bandBox=find('ex-bands'),
 seedBox=find('ex-seeds'),list=find('ex-cells'),filter=find('ex-filter'),count=find('ex-count'),
 plots=find('ex-plots'),said=find('ex-said'),dark=matchMedia('(prefers-color-scheme: dark)'),narrow=matchMedia('(max-width: 40rem)'),
 MOST_PANELS=12,MOST_DOTS=6000,state={x:null,y:null,at:-1,cell:-1},charts=[],fresh=true;
root.hidden=false;

function colour(name){return getComputedStyle(document.documentElement).getPropertyValue(name).trim();}
function of(cell){return dark.matches?cell.dark:cell.light;}
function text(v){
 if(v===null||v===undefined)return 'none';
 var a=Math.abs(v);
 return a!==0&&(a>=1e5||a<1e-3)?v.toExponential(2):String(Number(v.toPrecision(4)));}
function metric(){return data.metrics[metricBox.selectedIndex];}
function option(box,label){var o=document.createElement('option');o.textContent=label;box.appendChild(o);}

data.metrics.forEach(function(m){option(metricBox,m.title);});
option(panelBox,'one panel');
data.axes.forEach(function(name,i){
 var values=new Set(cells.map(function(c){return c.values[i];}));
 if(values.size>1&&values.size<=MOST_PANELS){option(panelBox,'by '+name);panelBox.lastChild.dataset.axis=i;}});
if(!data.every_seed||!data.metrics.some(function(m){return m.cells.some(function(c){return c&&c.s;});}))
 seedBox.parentNode.hidden=true;
cells.forEach(function(cell,i){
 var label=document.createElement('label'),box=document.createElement('input'),line=document.createElement('span');
 box.type='checkbox';box.checked=cell.on;
 box.addEventListener('change',function(){cell.on=box.checked;draw();});
 line.className='swatch';label.append(box,line,document.createTextNode(cell.name));
 cell.box=box;cell.label=label;cell.line=line;list.appendChild(label);});

function paint(){cells.forEach(function(cell){
 cell.line.style.borderTop='3px '+(cell.dash.length?(cell.dash[0]<4?'dotted':'dashed'):'solid')+' '+of(cell);});}

function panels(){
 var chosen=panelBox.selectedOptions[0].dataset.axis,found=new Map();
 cells.forEach(function(cell,i){
  if(!cell.on||!metric().cells[i])return;
  var key=chosen===undefined?'':data.axes[chosen]+' '+(cell.values[chosen]||'none');
  if(!found.has(key))found.set(key,[]);
  found.get(key).push(i);});
 return found;}

function isLog(){return logBox.checked&&!logBox.disabled;}

function ends(pick){
 var low=Infinity,high=-Infinity;
 cells.forEach(function(cell,i){
  var c=metric().cells[i];if(!cell.on||!c)return;
  pick(c).forEach(function(p){p.forEach(function(v){
   if(v===null||(isLog()&&v<=0))return;if(v<low)low=v;if(v>high)high=v;});});});
 return [low,high];}

function extent(){
 var seen=ends(function(c){return [c.m].concat(c.w?[c.w]:[],seedBox.checked&&c.s?c.s:[]);}),
  low=seen[0],high=seen[1];
 if(low>high)return [0,1];
 var room=(high-low)||Math.abs(high)||1;
 if(bandBox.checked){ // an interval that is far wider than all there is to see is cut
  var wide=ends(function(c){return c.l?[c.l,c.h]:[];});
  low=Math.min(low,Math.max(wide[0],isLog()?low/2:low-room/2));
  high=Math.max(high,Math.min(wide[1],isLog()?high*2:high+room/2));}
 if(isLog())return [low/1.08,high*1.08];
 var pad=0.05*(high-low)||Math.abs(high)*0.05||1;
 return [low-pad,high+pad];}

function xAll(){var first=steps[0],last=steps[steps.length-1],pad=0.03*(last-first)||0.5;return [first-pad,last+pad];}

function marks(low,high){ // round numbers of a log scale
 var found=[],many=Math.log10(high/low)>3;
 for(var p=Math.floor(Math.log10(low));p<=Math.log10(high);p++)(many?[1]:[1,2,5]).forEach(function(m){
  var v=m*Math.pow(10,p);if(v>=low&&v<=high)found.push(Number(v.toPrecision(2)));});
 return found.length>1?found:[low,high];}

function line(u,points,dash,width){
 var c=u.ctx,begun=false;
 c.beginPath();c.setLineDash(dash.map(function(d){return d*devicePixelRatio;}));c.lineWidth=width*devicePixelRatio;
 points.forEach(function(p){
  if(p===null){begun=false;return;}
  var x=u.valToPos(p[0],'x',true),y=u.valToPos(p[1],'y',true);
  if(begun)c.lineTo(x,y);else c.moveTo(x,y);begun=true;});
 c.stroke();c.setLineDash([]);}

function ok(v){return v!==null&&v!==undefined&&(!isLog()||v>0);}

function drawCell(u,i,many){
 var cell=cells[i],c=metric().cells[i],ctx=u.ctx,px=devicePixelRatio,y=function(v){return u.valToPos(v,'y',true);},
  x=function(k){return u.valToPos(steps[k],'x',true);};
 ctx.strokeStyle=ctx.fillStyle=of(cell);
 if(bandBox.checked&&c.l){
  var up=[],down=[];
  steps.forEach(function(_,k){if(c.l[k]!==null&&ok(c.h[k])){ // an end below 0 is the bottom of a log scale
   up.push([x(k),y(c.h[k])]);down.unshift([x(k),ok(c.l[k])?y(c.l[k]):u.bbox.top+u.bbox.height]);}});
  if(up.length>1){ctx.globalAlpha=many?0.08:0.16;ctx.beginPath();
   up.concat(down).forEach(function(p,k){if(k)ctx.lineTo(p[0],p[1]);else ctx.moveTo(p[0],p[1]);});
   ctx.closePath();ctx.fill();ctx.globalAlpha=1;}}
 if(seedBox.checked&&c.s){ctx.globalAlpha=0.6;
  c.s.forEach(function(values,k){values.forEach(function(v){if(ok(v)){
   ctx.beginPath();ctx.arc(x(k),y(v),2*px,0,7);ctx.fill();}});});ctx.globalAlpha=1;}
 if(c.w)line(u,c.w.map(function(v,k){return ok(v)?[steps[k],v]:null;}),[5,4],1.2);
 var live=[],gone=[],last=null;
 c.m.forEach(function(v,k){
  if(!ok(v))return;
  var p=[steps[k],v];
  if(c.d&&c.d[k]){if(last&&!gone.length)gone.push(last);gone.push(p);}else live.push(p);
  last=p;});
 line(u,live,cell.dash,cell===cells[state.cell]?3.5:2);
 line(u,gone,[1,4],2);
 if(live.length+gone.length<2||!many)live.concat(gone).forEach(function(p){
  ctx.beginPath();ctx.arc(u.valToPos(p[0],'x',true),u.valToPos(p[1],'y',true),3*px,0,7);ctx.fill();});
 if(c.d){ctx.font=11*px+'px system-ui,sans-serif';ctx.textAlign='center';
  c.d.forEach(function(d,k){if(d&&ok(c.m[k]))ctx.fillText(c.n[k]+'/'+c.t,x(k),y(c.m[k])-7*px);});}}

function chart(key,places,width){
 var holder=document.createElement('div'),tip=document.createElement('div'),title=metric().title+(key?', '+key:''),
  ink=colour('--ink'),soft=colour('--soft'),grid=colour('--line'),many=places.length>24;
 holder.className='plot';holder.tabIndex=0;holder.setAttribute('role','group');
 holder.setAttribute('aria-label',title+': arrow keys for generations and cells, plus, minus and 0 to zoom');
 tip.className='tip';tip.setAttribute('aria-hidden','true');
 if(key){var head=document.createElement('h3');head.textContent=key;holder.appendChild(head);}
 plots.appendChild(holder);
 var axis={stroke:soft,grid:{stroke:grid,width:1},ticks:{stroke:grid,width:1},font:'12px system-ui,sans-serif',
  labelFont:'12px system-ui,sans-serif',labelSize:18},whole=[1,2,5,10,20,50,100,200,500,1000,2000,5000,10000];
 var u=new uPlot({
  width:width,height:key?260:Math.max(260,Math.min(420,width*0.6)),legend:{show:false},
  scales:{x:{time:false,range:function(){return state.x||xAll();}},
   y:{distr:isLog()?3:1,range:function(){return state.y||extent();}}},
  axes:[Object.assign({label:'generation',incrs:whole},axis),
   Object.assign({},axis,isLog()?{splits:function(_,i,low,high){return marks(low,high);},
     filter:function(_,splits){return splits;}}:{},{size:64,label:title.length*6.5>width*0.6?undefined:metric().title,
    values:function(_,v){return v.map(function(n){return n===null?'':text(n);});}})],
  series:[{}].concat([{show:true,stroke:'transparent',points:{show:false}}]),
  cursor:{y:false,points:{show:false},drag:{x:true,y:true,setScale:false,dist:8},
   bind:{dblclick:function(){return function(){zoom(null);};}}},
  hooks:{draw:[function(u){
    var c=u.ctx,b=u.bbox;c.save();c.beginPath();c.rect(b.left,b.top,b.width,b.height);c.clip();
    places.forEach(function(i){drawCell(u,i,many);});c.restore();}],
   setSelect:[function(u){
    var s=u.select;if(s.width<8&&s.height<8)return;
    if(s.width>=8)state.x=[u.posToVal(s.left,'x'),u.posToVal(s.left+s.width,'x')];
    if(s.height>=8)state.y=[u.posToVal(s.top+s.height,'y'),u.posToVal(s.top,'y')];
    u.setSelect({left:0,top:0,width:0,height:0},false);again();}],
   setCursor:[function(u){
    if(u.cursor.left===null||u.cursor.left<0){if(!u.busy){tip.hidden=true;}return;}
    if(!u.busy)near(u);}]}
 },[steps,steps.map(function(){return null;})],holder);
 u.over.appendChild(tip);tip.hidden=true;u.tip=tip;u.places=places;u.key=key;charts.push(u);
 holder.addEventListener('keydown',function(e){key_(u,e);});
 holder.addEventListener('focus',function(){if(state.at<0){state.at=0;state.cell=places[0];}tell(u);});
 holder.addEventListener('blur',function(){tip.hidden=true;state.cell=-1;u.redraw();});}

function near(u){
 var best=Infinity,at=-1,who=-1;
 u.places.forEach(function(i){metric().cells[i].m.forEach(function(v,k){
  if(!ok(v))return;
  var dx=u.valToPos(steps[k],'x')-u.cursor.left,dy=u.valToPos(v,'y')-u.cursor.top,d=dx*dx+dy*dy;
  if(d<best){best=d;at=k;who=i;}});});
 if(who<0)return;
 if(at!==state.at||who!==state.cell||u.tip.hidden){state.at=at;state.cell=who;tell(u);}}

function tell(u){
 var c=metric().cells[state.cell],k=state.at;
 if(!c||u.places.indexOf(state.cell)<0)return;
 var parts=[cells[state.cell].name,'generation '+steps[k]+': '+text(c.m[k])];
 if(c.l&&c.l[k]!==null)parts.push('95 % interval '+text(c.l[k])+' to '+text(c.h[k]));
 var seeds=c.n[k]+' of '+c.t+(c.t===1?' seed':' seeds');
 if(c.d&&c.d[k])seeds+=', '+c.d[k]+' diverged';
 if(c.s&&c.s[k].length&&c.s[k].length<=12)seeds+=': '+c.s[k].map(text).join(', ');
 parts.push(seeds);
 if(c.w&&c.w[k]!==null&&c.w[k]!==undefined)parts.push('theory '+text(c.w[k]));
 u.tip.replaceChildren.apply(u.tip,parts.map(function(p,n){
  var e=document.createElement(n?'div':'b');e.textContent=p;return e;}));
 u.tip.hidden=false;
 var left=u.valToPos(steps[k],'x'),top=c.m[k]===null?0:u.valToPos(c.m[k],'y'),w=u.over.clientWidth;
 u.tip.style.left=Math.max(0,Math.min(left+12,w-u.tip.offsetWidth))+'px';
 u.tip.style.top=Math.max(0,Math.min(top+12,u.over.clientHeight-u.tip.offsetHeight))+'px';
 if(document.activeElement===u.root.parentNode||narrow.matches)said.textContent=parts.join('; ');
 u.busy=true;u.redraw(false);u.busy=false;}

function key_(u,e){
 var k=e.key,c;
 if(k==='+'||k==='=')zoom(0.5);else if(k==='-')zoom(2);else if(k==='0')zoom(null);
 else if(k==='ArrowLeft')state.at=Math.max(0,state.at-1);
 else if(k==='ArrowRight')state.at=Math.min(steps.length-1,state.at+1);
 else if(k==='ArrowUp'||k==='ArrowDown'){
  var at=u.places.indexOf(state.cell),n=u.places.length;
  state.cell=u.places[(at+(k==='ArrowUp'?n-1:1)+n)%n];}
 else return;
 e.preventDefault();
 if(u.places.indexOf(state.cell)<0)state.cell=u.places[0];
 tell(u);}

function zoom(by){
 if(by===null){state.x=state.y=null;}
 else{var x=state.x||xAll(),y=state.y||extent(),half=(x[1]-x[0])*by/2,middle=(x[0]+x[1])/2;
  if(state.at>=0)middle=steps[state.at];
  state.x=[middle-half,middle+half];
  if(!isLog()){var c=state.cell>=0&&metric().cells[state.cell]&&metric().cells[state.cell].m[state.at],
    m=ok(c)?c:(y[0]+y[1])/2,h=(y[1]-y[0])*by/2;state.y=[m-h,m+h];}
  var all=xAll();if(state.x[1]-state.x[0]>=all[1]-all[0])state.x=state.y=null;}
 again();}

function again(){charts.forEach(function(u){u.setData(u.data,true);});}

function draw(){
 var focused=charts.findIndex(function(u){return document.activeElement===u.root.parentNode;});
 charts.forEach(function(u){u.destroy();});charts=[];plots.replaceChildren();paint();
 var some=metric().cells.some(function(c){return c&&c.m.some(function(v){return v!==null;});}),
  positive=some&&metric().cells.every(function(c){return !c||c.m.every(function(v){return v===null||v>0;});});
 logBox.disabled=!positive;
 if(fresh){fresh=false;var all=ends(function(c){return [c.m];});logBox.checked=positive&&all[1]>30*all[0];}
 var found=panels(),wide=plots.clientWidth||600,columns=found.size>1?Math.max(1,Math.min(3,Math.floor(wide/320))):1;
 plots.style.gridTemplateColumns='repeat('+columns+',minmax(0,1fr))';
 found.forEach(function(places,key){chart(key,places,Math.floor((wide-(columns-1)*12)/columns));});
 if(!found.size)plots.textContent='Choose a cell below.';
 var on=cells.filter(function(c){return c.on;}).length;
 count.textContent=on+' of '+cells.length+' cells shown';
 if(focused>=0&&charts[focused])charts[focused].root.parentNode.focus();}

function choose(on){cells.forEach(function(c){if(!c.label.hidden){c.on=c.box.checked=on;}});draw();}
metricBox.addEventListener('change',function(){state.x=state.y=null;fresh=true;draw();});
panelBox.addEventListener('change',draw);
logBox.addEventListener('change',function(){state.y=null;draw();});
[bandBox,seedBox].forEach(function(box){box.addEventListener('change',draw);});
find('ex-all').addEventListener('click',function(){choose(true);});
find('ex-none').addEventListener('click',function(){choose(false);});
find('ex-in').addEventListener('click',function(){zoom(0.5);});
find('ex-out').addEventListener('click',function(){zoom(2);});
find('ex-whole').addEventListener('click',function(){zoom(null);});
filter.addEventListener('input',function(){
 var word=filter.value.toLowerCase();
 cells.forEach(function(c){c.label.hidden=c.name.toLowerCase().indexOf(word)<0;});});
dark.addEventListener('change',draw);
var before=plots.clientWidth;
draw();
new ResizeObserver(function(){if(plots.clientWidth!==before){before=plots.clientWidth;draw();}}).observe(plots);
})();
